// Opens the maps of promptmil on the current image in QuPath (or, with "Run for project", on every image).
// Research use only.
//
// 1. Write the folder of the maps between the quotes.
// 2. A map is found by the image's name without its suffix. Where the slide id is another, write it below.
// 3. Tiles (tens of thousands of objects) are for "Measurement maps"; say false to open the regions alone.

def folder = ''
def slideId = ''
def withTiles = true

import groovy.json.JsonSlurper
import java.awt.geom.AffineTransform
import java.util.zip.GZIPInputStream
import qupath.lib.io.PathIO
import qupath.lib.objects.PathObjectTools

def imageData = getCurrentImageData()
def server = imageData.getServer()
def name = slideId
if (!name) {
    def shown = server.getMetadata().getName()
    name = shown.contains('.') ? shown.substring(0, shown.lastIndexOf('.')) : shown
}
def regions = new File(folder, name + '.regions.geojson.gz')
def tiles = new File(folder, name + '.tiles.geojson.gz')
if (!regions.isFile()) {
    println 'No map of ' + name + ': ' + regions + ' is not there. Check folder and slideId at the top of the script.'
    return
}

// Positions count from the corner of the full slide. Where a slide states its scanned area, QuPath may show that alone.
def about
new GZIPInputStream(new FileInputStream(regions)).withCloseable { about = new JsonSlurper().parse(it, 'UTF-8').promptmil }
def full = about.size_lv0
def bounds = about.bounds_lv0
def shownSize = [server.getWidth(), server.getHeight()]
def isUnknown = full[0] == 0
def isFull = shownSize == full
def isCropped = shownSize == bounds.subList(2, 4)
if (!isUnknown && !isFull && !isCropped) {
    println 'The image has ' + shownSize + ' pixels, the slide of this map ' + full + ': another slide, nothing was opened.'
    return
}
def move = new AffineTransform()
if (isCropped && !isFull)
    move.translate(-bounds[0], -bounds[1])

def files = withTiles && tiles.isFile() ? [tiles, regions] : [regions]
for (file in files) {
    def objects
    new GZIPInputStream(new FileInputStream(file)).withCloseable { objects = PathIO.readObjectsFromGeoJSON(it) }
    if (!move.isIdentity())
        objects = objects.collect { PathObjectTools.transformObject(it, move, true) }
    imageData.getHierarchy().addObjects(objects)
    println objects.size() + ' objects of ' + file.getName()
}
